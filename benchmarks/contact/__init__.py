"""What ``benchmarks/first_contact.py`` measures, and the rules by which it judges."""
