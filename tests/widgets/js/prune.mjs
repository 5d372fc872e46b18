// Prunes as the browser does: reads {graph, rules} from stdin, writes what is kept for each rule.
import { readFileSync } from "node:fs";
import { prune } from "../../../vitlens/widgets/js/src/diagram/prune.js";

const { graph, rules } = JSON.parse(readFileSync(0, "utf-8"));
graph.importances = Float32Array.from(graph.importances);
graph.weights = Float32Array.from(graph.weights);
graph.offsets = graph.counts.reduce((all, n) => [...all, all[all.length - 1] + n], [0]);
let start = 0;
graph.blocks = graph.counts.map((n, layer) => {
  const own = start;
  start += n * (graph.counts[layer + 1] ?? 0);
  return own;
});
process.stdout.write(JSON.stringify(rules.map((rule) => prune(graph, rule))));
