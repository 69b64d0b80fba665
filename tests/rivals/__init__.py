"""`python -m tests.rivals`: the same class graded by this grader, by nbgrader and by otter-grader, side by side."""
