import { mount } from "./card/index.js";
import { widget } from "./lib/widget.js";

export default widget(mount, "feature-card");
