"""Compressed tables as torch modules: `Embedding` and `EmbeddingBag` in place of torch's own.

from cce_core.adapters.torch import Embedding

emb = Embedding(1_000_000, 32, method="cce", num_params=65_536)      # a torch.nn.Module
emb.cluster(optimizer=optimizer)                                     # now and then, while training
compress_(model, method="cce", ratio=100, min_rows=10_000)           # every nn.Embedding of a model, in place

On Linux the large loops of these modules run on torch's own threads; `CCE_TEAM=0` in the environment leaves them to the core's.
"""

from cce_core.adapters.torch.distributed.ddp import leave_out_pointers as leave_out_pointers
from cce_core.adapters.torch.modules.bag import EmbeddingBag as EmbeddingBag
from cce_core.adapters.torch.modules.embedding import Embedding as Embedding
from cce_core.adapters.torch.modules.learning import cluster_ as cluster_
from cce_core.adapters.torch.modules.learning import parameter_groups as parameter_groups
from cce_core.adapters.torch.modules.learning import reopen_ as reopen_
from cce_core.adapters.torch.modules.legacy import make_embedding as make_embedding
from cce_core.adapters.torch.modules.schedule import ClusterSchedule as ClusterSchedule
from cce_core.adapters.torch.modules.surgery import CompressionReport as CompressionReport
from cce_core.adapters.torch.modules.surgery import compress_ as compress_
from cce_core.adapters.torch.modules.tied import TiedLinear as TiedLinear
from cce_core.adapters.torch.operators.registry import decompositions as decompositions
from cce_core.adapters.torch.optim import FusedAdagrad as FusedAdagrad
from cce_core.adapters.torch.optim import FusedAdam as FusedAdam
from cce_core.adapters.torch.optim import FusedSGD as FusedSGD
