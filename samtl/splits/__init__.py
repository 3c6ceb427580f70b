"""Which samples are held out: row numbers with a digest.

Every draw depends on sample ids, labels and the seed, never on the order of rows: within each class, samples are
ranked by sha256 of (seed, id) and the first of them are held out. So the same dataset embedded in another order gives
the same split, and a larger share holds out the same samples and more.

Images cut from one scene look alike, and a head that was trained on one recognises the others: if samples have groups,
groups are ranked, and none is divided between parts.
"""

from samtl.splits.draw import fold as fold
from samtl.splits.draw import holdout as holdout
from samtl.splits.given import SplitRecord as SplitRecord
from samtl.splits.given import read_split as read_split
from samtl.splits.given import read_split_file as read_split_file
from samtl.splits.given import record_of as record_of
from samtl.splits.given import reuse as reuse
from samtl.splits.spec import leaks as leaks
from samtl.splits.spec import parse as parse
from samtl.splits.spec import parse_many as parse_many
from samtl.splits.spec import resolve as resolve
from samtl.splits.spec import select as select
from samtl.splits.split import PARTS as PARTS
from samtl.splits.split import VALIDATION_SHARE as VALIDATION_SHARE
from samtl.splits.split import Samples as Samples
from samtl.splits.split import Split as Split
from samtl.splits.split import digest_of as digest_of
