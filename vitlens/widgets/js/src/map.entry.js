import { widget } from "./lib/widget.js";
import { mount } from "./map/index.js";

export default widget(mount, "feature-map");
