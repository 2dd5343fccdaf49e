"""Reading the user's data, for calibration and for evaluation."""

from edgekit.data.checks import check_labels, check_range
from edgekit.data.dataset import Data, open_data
from edgekit.data.peek import peek
from edgekit.data.preprocessing import Preprocessing

__all__ = ["Data", "Preprocessing", "check_labels", "check_range", "open_data", "peek"]
