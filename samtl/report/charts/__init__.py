"""The study's curves, distributions, matrices and costs, and its tables: a study in, drawings out."""

from samtl.report.charts._confusions import confusions as confusions
from samtl.report.charts._costs import costs as costs
from samtl.report.charts._images import image_scores as image_scores
from samtl.report.charts._shares import by_share as by_share
from samtl.report.charts._tables import provenance as provenance
from samtl.report.charts._tables import scores_table as scores_table
from samtl.report.charts._training import training_curves as training_curves
