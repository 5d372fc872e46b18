import { mount } from "./browser/index.js";
import { widget } from "./lib/widget.js";

export default widget(mount, "feature-browser");
