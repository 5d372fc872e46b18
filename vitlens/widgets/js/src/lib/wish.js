// Wishes: traits that stand for what is wanted, until Python has the figures of it.

/** @import { Model } from "./types" */
import { ask, NoKernel } from "./ask.js";
import { save, same, setLocal } from "./model.js";
import { tell } from "./notice.js";

/**
 * Sets a trait, and says so where there is no answer.
 * @param {Model} model
 * @param {string} name
 * @param {unknown} wanted
 * @param {() => unknown} shown what the figures are of
 */
export function wishFor(model, name, wanted, shown) {
  save(model, { [name]: wanted });
  ask(model, "ping").catch((error) => {
    // A busy kernel still hears it later, and a later wish is not this one's to take back.
    const isLost = error instanceof NoKernel && same(model.get(name), wanted);
    if (isLost) setLocal(model, { [name]: shown() });
    tell(model, error);
  });
}
