"""Tables for ids without end: who has a row of its own, who might earn one, and who must give it up."""

from cce_core.tiers.frequency import FrequencySketch as FrequencySketch
from cce_core.tiers.id_map import IdMap as IdMap
from cce_core.tiers.owners import Admissions as Admissions
from cce_core.tiers.owners import Owners as Owners
from cce_core.tiers.policies import Policy as Policy
from cce_core.tiers.settled import Settled as Settled
from cce_core.tiers.transfers import Moves as Moves
