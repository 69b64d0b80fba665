"""The example submissions: each folder is one student's work and what grading it must come to."""
