import { mount } from "./curves/index.js";
import { widget } from "./lib/widget.js";

export default widget(mount, "curve-plot");
