"""What a run costs before it is rented: compile the real train step for a named topology, count, price."""
