"""What the page on performance says of each section: what was measured, and what its floor is."""

from __future__ import annotations

INTRODUCTION = """
Made by `grader bench` from [{record}]({record}), which holds every single run; not to be edited by hand. Each figure
stands beside a floor: the least that the same work can take, measured in turns with it in the same minutes. Times are
medians; single runs are the dots of the plot. A busy machine slows both, but not always alike: what was measured under
load (“where and when”) says little of wall time, and more of CPU time.
"""
TITLES = {
    "gradebook": "The gradebook",
    "sandbox": "The start of a sandbox",
    "submission": "One small submission",
    "pool": "Several workers",
    "memory": "Memory over a long batch",
    "reading": "Reading held-out text",
    "simulated": "A large cluster, simulated",
}
# filled in with the settings of the section
MEANING = {
    "gradebook": """
Every export and every page asks the gradebook which grades count. Here it holds {grades:,} grades, {each:g} of each
of {students:,} students. The floor reads the same grades when their places in the file are already known: what lies
above it is the cost of finding them. “By rules” means that the best of a student counts and lateness costs points; what
that comes to is kept as grades come in. Times are of the query; making pages and sheets of 1,000 students takes longer.
""",
    "sandbox": """
From nothing until an empty notebook has run, in a sandbox that is started cold. The floor is the same runner and the
same kernel without a sandbox: what lies above it is the price of sealing. (Most sandboxes are started warm: see
below.)
""",
    "submission": """
A notebook that trains a small network for one second of CPU time, and is then called {calls:g} times, as by checks.
“Warm” is a sandbox that is a copy of a process which has imported everything, as grading starts them; “cold” starts
each from nothing. CPU time is that of the grader, the sandbox and the template together. The floor is the least that
the same cells and calls can take: a fork of a process that has imported MXNet, with no kernel, no sandbox and nobody
who checks anything. `python script.py` is what a student does at home, imports included.
""",
    "pool": """
Copies of that small notebook, with {calls:g} checks, are graded as a class is: worker processes, sandboxes, a
gradebook. The rate is that of a batch under way; what starts once (worker processes, templates) is left out.
Efficiency is the rate of all workers together, divided by their number times the rate of one: 1 if each adds as much
as the first. The floor shows what this machine allows: the same cells in as many bare forks, which share nothing but
its cores. A homework that trains for minutes instead of a second takes that much longer; what the grader adds to each
submission stays the same.
""",
    "memory": """
{submissions:,} copies of the small notebook are graded by {workers:g} workers, and the grader's own processes
measured meanwhile: the coordinator, which writes the gradebook; the workers, together; and the templates of their
warm sandboxes, together. What students' notebooks take is not in it: that has a limit of its own. Resident memory
(RSS) counts pages that processes share once for each; the proportional size (PSS) gives each of them its part, and
says what the machine needs. A template shares most of its pages with its copies, so that its PSS depends on how many
live at that moment; whether something grows is better seen in its RSS. Growth is the median of the slopes between any
two samples.
""",
    "reading": """
Held-out text of {chars:,} characters is read in lock-step by the models of the solution: a model must answer for each
character before it is shown it. All models of a notebook are asked at each step, and while one is at work the next are
prepared; a single model has nothing to hide its own Python behind. The floor is teacher forcing: the same model reads
the same text, up to 64 characters at once, without a sandbox. What lies above it is the price of being sure that no
model looks ahead; what of that is the price of a step, and not of the sandbox and of the grader, the second floor says:
the same steps by the models alone. Much of the price is paid by the step, not by the character: with four times as many
lanes little of it is left. “Some lanes again” asks for part of the text twice, which catches scores that depend on more
than their text; the last row is all that a submission is asked, the test text and spliced text included, beside
held-out text only.
""",
    "simulated": """
Tasks that only sleep are handed to as many slots of a Dask cluster: the coordinator and the scheduler are real. The
floor is the ideal: as many rounds as are needed, without a moment in between (the slots that the last round leaves over
count as idle). What lies above it is how long free
slots wait for their next submission; the CPU time says when one coordinator would become too slow.
""",
}
