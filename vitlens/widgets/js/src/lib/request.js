// Requests: traits that are set before Python has their results.

/** @import { Model } from "./types" */
import { ask, NoKernel } from "./ask.js";
import { same, save, setLocal } from "./model.js";
import { showError } from "./notice.js";

/**
 * Sets a trait, and shows an error where there is no answer.
 * @param {Model} model
 * @param {string} name
 * @param {unknown} wanted
 * @param {() => unknown} shown the value of the trait that the shown results belong to
 */
export function requestTrait(model, name, wanted, shown) {
  save(model, { [name]: wanted });
  ask(model, "ping").catch((error) => {
    // A busy kernel still handles it later, and a later request must not be undone.
    const isLost = error instanceof NoKernel && same(model.get(name), wanted);
    if (isLost) setLocal(model, { [name]: shown() });
    showError(model, error);
  });
}
