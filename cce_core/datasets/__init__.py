"""Data sets as plain arrays: ratings, interactions and Criteo from disk, others drawn from a known truth; no unasked download."""

from cce_core.datasets.catalog import load as load
from cce_core.datasets.catalog import names as names
from cce_core.datasets.click_stream import ClickStream as ClickStream
from cce_core.datasets.criteo import Clicks as Clicks
from cce_core.datasets.criteo import CriteoFile as CriteoFile
from cce_core.datasets.criteo import criteo_sizes as criteo_sizes
from cce_core.datasets.fetch import download as download
from cce_core.datasets.fetch import find as find
from cce_core.datasets.interactions import Interactions as Interactions
from cce_core.datasets.interactions import Pairs as Pairs
from cce_core.datasets.interactions import Ratings as Ratings
from cce_core.datasets.interactions import Split as Split
from cce_core.datasets.interactions import split_last as split_last
from cce_core.datasets.movielens import read_ratings as read_ratings
from cce_core.datasets.negatives import split_pairs as split_pairs
from cce_core.datasets.negatives import split_with_negatives as split_with_negatives
from cce_core.datasets.pairs import read_interactions as read_interactions
from cce_core.datasets.synthetic import Synthetic as Synthetic
from cce_core.datasets.synthetic import synthetic_like as synthetic_like
from cce_core.datasets.synthetic_criteo import SyntheticCriteo as SyntheticCriteo
from cce_core.datasets.vectors import Vectors as Vectors
from cce_core.datasets.vectors import read_vectors as read_vectors
