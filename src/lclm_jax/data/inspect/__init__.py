"""Looking at prepared data and packed rows."""
