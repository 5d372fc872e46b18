/** The part of anywidget's model that we use. */
export interface Model {
  get(name: string): any;
  set(name: string, value: any): void;
  save_changes(): void;
  send(content: unknown, callbacks?: any, buffers?: (ArrayBuffer | ArrayBufferView)[]): unknown;
  on(name: string, callback: (...args: any[]) => void): void;
  off(name: string, callback?: (...args: any[]) => void): void;
}

/** (layer, feature); feature -1 is the error node, -2 the target. */
export type NodeKey = [number, number];

/** (row, column); prefix token i is (-1, i). */
export type Patch = [number, number];

/** Builds a component inside `el`; it stops when `signal` aborts. */
export type Mount = (model: Model, el: HTMLElement, signal: AbortSignal) => void;

export interface Answer {
  value: any;
  buffers: DataView[];
}
