"""Optimisers that update a table's memory in place, from dense or sparse gradients; and losses with their gradients."""

from cce_core.training.adagrad import Adagrad as Adagrad
from cce_core.training.adamw import Adam as Adam
from cce_core.training.adamw import AdamW as AdamW
from cce_core.training.losses import logistic_dot as logistic_dot
from cce_core.training.optimizer import Optimizer as Optimizer
from cce_core.training.sgd import SGD as SGD
