"""Training a network to answer as another one does, or as labels say.

trainable.py, student.py                            programs that learn, and back
losses.py, readings.py, augment.py, judging.py      what is learned, from what, and how it is judged
schedule.py, device.py, average.py, guard.py        how long, how fast, where
checkpoint.py, ahead.py, fit.py                     the loop
lessons.py, course.py, distill.py                   what ties it all together
"""

from edgekit.stages.train.distill import Trained, distill
from edgekit.stages.train.losses import Tap
from edgekit.stages.train.student import load_student

__all__ = ["Tap", "Trained", "distill", "load_student"]
