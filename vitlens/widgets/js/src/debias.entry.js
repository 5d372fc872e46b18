import { mount } from "./debias/index.js";
import { widget } from "./lib/widget.js";

export default widget(mount, "debias");
