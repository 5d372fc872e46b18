import { mountHeatmap } from "./heatmap/mount.js";
import { widget } from "./lib/widget.js";

export default widget(mountHeatmap, "heatmap");
