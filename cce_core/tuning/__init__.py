"""How small can a table be? Sweeps over methods, budgets and settings, with your data or your model, and what they found."""

from cce_core.tuning.candidates import Candidate as Candidate
from cce_core.tuning.candidates import candidate as candidate
from cce_core.tuning.gmf import GMF as GMF
from cce_core.tuning.gmf import Result as Result
from cce_core.tuning.gmf import Settings as Settings
from cce_core.tuning.gmf import auc as auc
from cce_core.tuning.gmf import fit as fit
from cce_core.tuning.gmf import learn_from_full as learn_from_full
from cce_core.tuning.gmf import logloss as logloss
from cce_core.tuning.gmf import train as train
from cce_core.tuning.points import Point as Point
from cce_core.tuning.points import Recommendation as Recommendation
from cce_core.tuning.results import Results as Results
from cce_core.tuning.sweep import sweep as sweep
