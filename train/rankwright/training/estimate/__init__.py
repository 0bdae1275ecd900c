"""What a training step costs, from shapes alone; start with plan.py."""
