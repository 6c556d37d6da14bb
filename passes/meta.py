"""The entries that the passes leave in `node.meta`: which they are, who writes each, and who reads it.

| entry | on | written by | read by |
|---|---|---|---|
| `TAG` | the root of a site | `fuse.tag`, in the joint or inference graph | `fuse.fuse`, in the post-grad graph |
| `TURN` | what is random or mutates | `effects.keep` | the lowering of `after`, which orders such calls |
| `CANCELLED` | the output of a graph | `cancel` | `hooks.run_partition`: only where a site was cancelled is `defer` called |
| `REGION` | the output of a region's graph | `regions.make_region` | reports, which count a region where it is called |
| `OWNER` | a node of stock's graph | `explain` | `explain`, after Inductor has made kernels of the nodes |

Inductor and the partitioner copy `meta` from node to node, so that an entry travels with what it is about.
"""

from __future__ import annotations

TAG = "ste_compile"
TURN = "ste_compile_turn"
CANCELLED = "ste_compile_cancelled"
REGION = "ste_compile_region"
OWNER = "ste_compile_owner"
