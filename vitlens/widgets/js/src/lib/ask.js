// Requests to Python, with answers; works wherever `model.send` does.

/** @import { Answer, Model } from "./types" */

export const SILENCE = "Python does not answer: it is busy, or no kernel is running.";
const WAIT = 30_000;

/** The request cannot be sent; after a timeout, in contrast, the answer may still come. */
export class NoKernel extends Error {
  constructor() {
    super("This needs a running kernel.");
  }
}

/** @type {WeakMap<Model, Map<number, (message: any, buffers: DataView[]) => void>>} */
const open = new WeakMap();
let last = 0;

/** @param {Model} model */
function waiting(model) {
  let map = open.get(model);
  if (!map) {
    const made = new Map();
    open.set(model, made);
    model.on("msg:custom", (/** @type {any} */ message, /** @type {DataView[]} */ buffers) => {
      if (message?.vl === "answer") made.get(message.id)?.(message, buffers ?? []);
    });
    map = made;
  }
  return /** @type {Map<number, (message: any, buffers: DataView[]) => void>} */ (map);
}

/**
 * Sends a request to Python; `_answer_<what>` of the widget answers it.
 * @param {Model} model
 * @param {string} what
 * @param {unknown} [payload]
 * @param {(ArrayBuffer | ArrayBufferView)[]} [buffers]
 * @param {{ wait?: number }} [options] how long to wait for the answer, in ms
 * @returns {Promise<Answer>} rejects with a message for the user
 */
export function ask(model, what, payload = {}, buffers = [], { wait = WAIT } = {}) {
  const answers = waiting(model);
  // Other views of the same widget receive the answers too: ids must differ between pages.
  const id = Math.floor(Math.random() * 2 ** 32) * 2 ** 16 + (last++ % 2 ** 16);
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => done(() => reject(new Error(SILENCE))), wait);
    const done = (/** @type {() => void} */ then) => {
      clearTimeout(timer);
      answers.delete(id);
      then();
    };
    answers.set(id, (message, found) =>
      done(() =>
        "error" in message
          ? reject(new Error(message.error))
          : resolve({ value: message.value, buffers: found }),
      ),
    );
    try {
      const sent = /** @type {any} */ (
        model.send({ vl: "ask", id, what, payload }, undefined, buffers)
      );
      sent?.catch?.(() => done(() => reject(new NoKernel())));
    } catch {
      done(() => reject(new NoKernel()));
    }
  });
}
