"""What the grader costs: each figure is measured beside a floor, recorded, and laid out as a page and a plot."""
