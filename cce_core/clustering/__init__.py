"""Vectors to clusters: k-means for narrow vectors, and the entropies that tell whether clusters have collapsed."""

from cce_core.clustering.circular import circular_assign as circular_assign
from cce_core.clustering.circular import circular_k_means as circular_k_means
from cce_core.clustering.circular import circular_update as circular_update
from cce_core.clustering.entropy import column_entropy as column_entropy
from cce_core.clustering.entropy import least_entropies as least_entropies
from cce_core.clustering.entropy import pair_entropy as pair_entropy
from cce_core.clustering.estimator import NotFittedError as NotFittedError
from cce_core.clustering.kmeans import KMeans as KMeans
from cce_core.clustering.lloyd import assign as assign
from cce_core.clustering.lloyd import update as update
from cce_core.clustering.minibatch import MiniBatchKMeans as MiniBatchKMeans
from cce_core.clustering.pursuit.ksvd import KSVD as KSVD
from cce_core.clustering.pursuit.ksvd import k_svd as k_svd
from cce_core.clustering.pursuit.omp import omp as omp
from cce_core.clustering.seeding import k_means_plus_plus as k_means_plus_plus
from cce_core.clustering.seeding import random_points as random_points
