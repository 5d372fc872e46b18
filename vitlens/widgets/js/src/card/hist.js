// A small histogram of activations.

import { counted, h, s, show } from "../lib/dom.js";

const WIDTH = 320;
const HEIGHT = 104;
const FOOT = 16;
const HEAD = 16;

/**
 * @param {{ edges: number[], counts: number[] }} histogram over active tokens; bars are equally
 *   wide
 * @param {{ active: number, tokens: number, none?: string }} about `none`: text without active tokens
 */
export function histogram({ edges, counts }, { active, tokens, none = "Not active on this image." }) {
  if (!counts.length) return h("p", { class: "vl-muted" }, none);
  const most = Math.max(...counts);
  const step = WIDTH / counts.length;
  const floor = HEIGHT - FOOT;
  const bars = counts.map((count, i) =>
    s(
      "rect",
      {
        x: i * step + 0.5,
        y: floor - (count / most) * (floor - HEAD),
        width: step - 1,
        height: (count / most) * (floor - HEAD),
      },
      s("title", {}, `${show(edges[i])} to ${show(edges[i + 1])}: ${counted(count, "token")}`),
    ),
  );
  const text = `Activation over ${active.toLocaleString("en")} active of ${tokens.toLocaleString("en")} tokens, up to ${show(edges.at(-1) ?? 0)}`;
  return s(
    "svg",
    { class: "vl-card-hist", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": text },
    bars,
    s("line", { x1: 0, x2: WIDTH, y1: floor, y2: floor }),
    s("text", { x: 0, y: 10, class: "vl-quieter" }, `tokens, up to ${most.toLocaleString("en")}`),
    s("text", { x: 0, y: HEIGHT - 3 }, show(edges[0])),
    edges[0] > 0 &&
      s(
        "text",
        { x: WIDTH / 2, y: HEIGHT - 3, "text-anchor": "middle", class: "vl-quieter" },
        "activation, logarithmic",
      ),
    s("text", { x: WIDTH, y: HEIGHT - 3, "text-anchor": "end" }, show(edges.at(-1) ?? 0)),
  );
}
