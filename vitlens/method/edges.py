"""Edge importance: how much a node adds to the target by way of a feature of the next site.

The definition, with ``m_i = (z_i - z_bar_i) sd_i`` how far each feature moves the stream::

    E_i[f, g] = sum_{t, u} m_i[t, f] < W_dec_i[f], d z_{i+1}[u, g] / d x_i[t] > G_{i+1}[u, g]  (20)
    E_i[e, g] = sum_{t, u} < e_i[t] - e_bar_i[t],  d z_{i+1}[u, g] / d x_i[t] > G_{i+1}[u, g]  (21)

In the derivative of ``z_{i+1}`` the block runs with LibraGrad's rules (or plainly), and the SAE's
sd and mask of active features are constants. With "leaf" error gradients the rows of E_i sum to
the node importances: ``sum_g E_i[f, g] = N_i[f]``.

Three engines give the same numbers:

- "vjp", reverse mode: one cotangent per target feature g, in chunks, pulled back to x_i. Works
  for any block. This is what the published code does with `jacrev`.
- "jvp", forward mode: one tangent per source node f, all its tokens together, batched with
  `vmap`. Works for any block. This is the paper's trick for a pruned circuit.
- "closed_form": all pairs at once for blocks with one softmax attention; see
  `vitlens.method.closed_form`. Across several blocks between two sites it does not apply, and
  "jvp" or "vjp" takes the pair, whichever needs fewer passes.

Source: Kim et al., NeurIPS 2025, arXiv 2509.17401, section 3; docs/method.md, "Edge importance".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from vitlens.errors import ModelError, check_choice
from vitlens.method import closed_form
from vitlens.method.derivatives import pullback, pushforward
from vitlens.method.importance import Engine, Importances
from vitlens.method.pair import SitePair
from vitlens.method.replacement import ReplacementModel, Trace
from vitlens.progress import Progress, Watch
