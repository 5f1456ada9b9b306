"""How long a step will take, beside how long it takes at least: formulas and compiled programs at measured rates."""
