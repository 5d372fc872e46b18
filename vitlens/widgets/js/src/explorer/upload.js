// A picture small enough for one message to Python.

const AS_IT_IS = 4_000_000; // bytes; Jupyter's server closes the connection at 10 MB
const SIDE = 1600; // pixels: more than any model's input

/**
 * The file's own bytes, or those of a smaller picture where it is too large.
 * @param {File} file
 * @returns {Promise<ArrayBuffer>}
 */
export async function sendable(file) {
  if (file.size <= AS_IT_IS) return file.arrayBuffer();
  const picture = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} is too large to send, and the browser cannot make it smaller.`);
  });
  const scale = Math.min(1, SIDE / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
  canvas.getContext("2d")?.drawImage(picture, 0, 0, canvas.width, canvas.height);
  /** @type {Blob | null} */
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  if (!blob) throw new Error(`${file.name} could not be made smaller.`);
  return blob.arrayBuffer();
}
