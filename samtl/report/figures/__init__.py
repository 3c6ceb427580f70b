"""The study's curves, distributions, matrices and costs, and its tables: a study in, drawings out."""

from samtl.report.figures.confusions import confusions as confusions
from samtl.report.figures.costs import costs as costs
from samtl.report.figures.images import image_scores as image_scores
from samtl.report.figures.shares import by_share as by_share
from samtl.report.figures.tables import provenance as provenance
from samtl.report.figures.tables import scores_table as scores_table
from samtl.report.figures.training import training_curves as training_curves
