"""Which samples are held out: row numbers with a digest.

Every draw depends on sample ids, labels and the seed, never on the order of rows: within each class, samples are
ranked by sha256 of (seed, id) and the first of them are held out. So the same dataset embedded in another order gives
the same split, and a larger share holds out the same samples and more.

Images cut from one scene look alike, and a head that was trained on one recognises the others: if samples have groups,
groups are ranked, and none is divided between parts.
"""

from samtl.splits.draw import fold, holdout
from samtl.splits.given import SplitRecord, read_split, read_split_file, record_of, reuse
from samtl.splits.spec import SplitSpec, leaks, parse, parse_many, resolve, select
from samtl.splits.split import PARTS, VALIDATION_SHARE, Samples, Split, digest_of, require_usable

__all__ = [
    "PARTS",
    "VALIDATION_SHARE",
    "Samples",
    "Split",
    "SplitRecord",
    "SplitSpec",
    "digest_of",
    "fold",
    "holdout",
    "leaks",
    "parse",
    "parse_many",
    "read_split",
    "read_split_file",
    "record_of",
    "require_usable",
    "resolve",
    "reuse",
    "select",
]
