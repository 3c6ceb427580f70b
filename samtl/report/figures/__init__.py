"""The figures and tables of a comparison: curves, distributions, matrices, costs, scores, provenance."""

from samtl.report import style as style  # first, since it checks that matplotlib is installed
from samtl.report.figures.calibration import reliability as reliability
from samtl.report.figures.classes import per_class as per_class
from samtl.report.figures.confusion import confusions as confusions
from samtl.report.figures.costs import costs as costs
from samtl.report.figures.costs import encoder_costs as encoder_costs
from samtl.report.figures.costs import pass_seconds as pass_seconds
from samtl.report.figures.numbers import predicted_numbers as predicted_numbers
from samtl.report.figures.scores import by_share as by_share
from samtl.report.figures.scores import score_tables as score_tables
from samtl.report.figures.single_images import image_scores as image_scores
from samtl.report.figures.tables import differences as differences
from samtl.report.figures.tables import failures as failures
from samtl.report.figures.tables import provenance as provenance
from samtl.report.figures.training import training_curves as training_curves
