"""The fused optimisers, and what optimisers know of a table's parameters when it is clustered."""

from cce_core.adapters.torch.optim.optimizers import FusedAdagrad as FusedAdagrad
from cce_core.adapters.torch.optim.optimizers import FusedAdam as FusedAdam
from cce_core.adapters.torch.optim.optimizers import FusedSGD as FusedSGD
