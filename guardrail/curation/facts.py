"""What duplicate detection and decontamination compare, computed once for each record: digest and MinHash signature.

Source: Broder, "On the resemblance and containment of documents" (1997).
"""

from typing import Literal

import numpy as np
import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from guardrail.curation.config import CurationConfig
from guardrail.records import from_table
from guardrail.text import canonical, digest, joined

_SCHEME: Literal["affine32"] = "affine32"

#: `digest` is of the whole record, not only of its text; `signature` is the MinHash of the text, as bytes.
FACTS = (pa.field("digest", pa.string()), pa.field("signature", pa.binary()))


def with_facts(config: CurationConfig, batch: pa.Table) -> pa.Table:
    """Return a batch of records with the columns `FACTS`."""
    records = from_table(batch)
    digests = [digest(repr(list(record.items()))) for record in records]
    signatures = [minhash(joined(r["text"], r["response"]), config).hashvalues.tobytes() for r in records]
    for field, values in zip(FACTS, (digests, signatures), strict=True):
        batch = batch.append_column(field, pa.array(values, type=field.type))
    return batch


def minhash(text: str, config: CurationConfig) -> MinHash:
    """Return the signature of a text's canonical form over its character shingles."""
    plain = canonical(text)
    shingles = {plain[i : i + config.shingle] for i in range(max(1, len(plain) - config.shingle + 1))}
    signature = MinHash(num_perm=config.permutations, scheme=_SCHEME)
    signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles])
    return signature


def near_index(config: CurationConfig) -> MinHashLSH:
    """Return an empty index whose `query` proposes texts that may be similar enough; compare their signatures too.

    Since they are compared, a wrong proposal costs only time and a missed one a duplicate: at 0.8 and 128 permutations
    these weights propose 95% of the pairs right at the threshold, equal ones 40%.
    """
    return MinHashLSH(config.near_duplicate, config.permutations, weights=(0.05, 0.95))


def from_bytes(signature: bytes) -> MinHash:
    """Return the signature that `with_facts` stored."""
    return MinHash(hashvalues=np.frombuffer(signature, dtype=np.uint32), scheme=_SCHEME)
