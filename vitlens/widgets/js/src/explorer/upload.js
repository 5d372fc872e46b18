// An image small enough for one message to Python.

const UNCHANGED = 4_000_000; // bytes; Jupyter's server closes the connection at 10 MB
const SIDE = 1600; // pixels: more than any model's input

/**
 * The bytes of the file, or of a smaller image where the file is too large.
 * @param {File} file
 * @returns {Promise<ArrayBuffer>}
 */
export async function sendable(file) {
  if (file.size <= UNCHANGED) return file.arrayBuffer();
  const image = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} is too large to send, and the browser cannot make it smaller.`);
  });
  const scale = Math.min(1, SIDE / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(image.width * scale);
  canvas.height = Math.round(image.height * scale);
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  /** @type {Blob | null} */
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  if (!blob) throw new Error(`${file.name} could not be made smaller.`);
  return blob.arrayBuffer();
}
