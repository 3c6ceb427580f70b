"""Which samples are held out: index arithmetic with a digest, nothing else.

Who goes where depends on sample ids, labels and the seed, never on the order of rows: within each class, samples
are ranked by sha256 of (seed, id) and the first of them are held out. So the same dataset embedded in another
order gives the same split, and a larger share holds out the same samples and more, but for what rounding shifts.

Images cut from one scene look alike, and a head that has seen one of them knows the others: where samples have
groups, it is the groups that are ranked, and none is ever torn. Where a dataset ships a split, `shipped` takes it.
How few labels do is asked of one split: `fewer` and `shots` leave samples out of its training part.
"""

from __future__ import annotations

from samtl.splits.draw import (
    fold,
    holdout,
    inner,
    require_fold,
)
from samtl.splits.fewer import (
    fewer,
    require_part,
    require_shots,
    shots,
)
from samtl.splits.given import PARTS, from_record, shipped
from samtl.splits.record import SplitRecord, read_split, read_split_file, record_of
from samtl.splits.split import (
    VALIDATION_SHARE,
    Rows,
    Split,
    digest_of,
    require_share,
)

__all__ = [
    "Split",
    "Rows",
    "holdout",
    "fold",
    "inner",
    "fewer",
    "shots",
    "shipped",
    "from_record",
    "SplitRecord",
    "record_of",
    "read_split",
    "read_split_file",
    "digest_of",
    "require_share",
    "require_fold",
    "require_part",
    "require_shots",
    "PARTS",
    "VALIDATION_SHARE",
]
