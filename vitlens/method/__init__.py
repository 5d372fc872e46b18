"""The method of the paper, in reading order; docs/method.md derives the same equations.

1. `replacement`: features plus one error node per site, and the replaced forward pass
2. `libragrad`: the backward pass in which every block is linear
3. `importance`: targets, and the importance of nodes
4. `edges`: the importance of edges, by definition, in forward and in reverse mode
5. `closed_form`: the same edges by the fast engine, derived
6. `engines`: which engine computes which edges, and only those that are asked for
7. `rankings`: node importance, Cross-Layer Attribution, plain gradients, activation, random
8. `logit_lens`: what one feature adds to the logits directly
9. `path_importance`: importance on the way from the empty model to the full one
10. `patching`: how far the target falls when one edge is cut, from few runs for all edges

`derivatives` wraps PyTorch's forward- and reverse-mode derivatives. The walk from edges to a
circuit is in `vitlens.circuits.prune`, insertion and deletion in `vitlens.circuits.faithfulness`.

Source: Kim et al., "Interpreting vision transformers via residual replacement model", NeurIPS
2025, arXiv 2509.17401.
"""
