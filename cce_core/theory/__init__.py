"""CCE where it can be proved: least squares, dense and sparse, beside the bound of the paper's Theorem 3.1."""

from cce_core.theory.dense import dense_cce as dense_cce
from cce_core.theory.problem import Fit as Fit
from cce_core.theory.problem import loss_bound as loss_bound
from cce_core.theory.problem import rho as rho
from cce_core.theory.sparse import sparse_cce as sparse_cce
