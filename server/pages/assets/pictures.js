// Turns a file into what a request carries: a data URL. Pictures that the server reads as they are stay untouched;
// very large ones are made smaller here, other formats become PNG, and the note says so.

export const LONGEST_SIDE = 2048; // pixels: no LLaVA canvas is larger, so more would only be sent to be thrown away
export const MOST_PICTURES = 8; // waiting in the composer at once
const LARGEST_FILE = 6 << 20; // bytes
const LARGEST_INPUT = 64 << 20; // bytes
const ACCEPTED = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]);

function toDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}

function encode(canvas, type, quality) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The browser could not encode it."))), type, quality);
  });
}

async function decode(blob, name) {
  const address = URL.createObjectURL(blob);
  const image = new Image();
  image.src = address;
  try {
    await image.decode();
  } catch {
    throw new Error(`${name} is no picture that this browser can read.`);
  } finally {
    URL.revokeObjectURL(address);
  }
  if (!image.naturalWidth || !image.naturalHeight) throw new Error(`${name} is an empty picture.`);
  return image;
}

async function redraw(image, width, height, asPhoto) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  if (asPhoto) {
    context.fillStyle = "white"; // JPEG has no transparency
    context.fillRect(0, 0, width, height);
  }
  context.drawImage(image, 0, 0, width, height);
  return asPhoto ? encode(canvas, "image/jpeg", 0.92) : encode(canvas, "image/png");
}

/** A picture ready to be sent: {name, url, width, height, note}. Raises an Error whose message is fit for the page. */
export async function readPicture(blob, name) {
  if (blob.size > LARGEST_INPUT) throw new Error(`${name} is larger than ${LARGEST_INPUT >> 20} MB.`);
  const image = await decode(blob, name);
  const { naturalWidth, naturalHeight } = image;
  const scale = Math.min(1, LONGEST_SIDE / Math.max(naturalWidth, naturalHeight));
  const width = Math.max(1, Math.round(naturalWidth * scale));
  const height = Math.max(1, Math.round(naturalHeight * scale));
  const known = ACCEPTED.has(blob.type);
  if (scale === 1 && known && blob.size <= LARGEST_FILE) {
    return { name, url: await toDataUrl(blob), width, height, note: "" };
  }
  let made = await redraw(image, width, height, blob.type === "image/jpeg");
  if (made.size > LARGEST_FILE) made = await redraw(image, width, height, true);
  const format = made.type === "image/jpeg" ? "JPEG" : "PNG";
  const note =
    scale < 1
      ? `made smaller here, from ${naturalWidth} × ${naturalHeight}`
      : known ? `packed again as ${format}, it was ${(blob.size / (1 << 20)).toFixed(1)} MB` : `turned into ${format}`;
  return { name, url: await toDataUrl(made), width, height, note };
}

/** The picture files in a drop or a paste. */
export function filesIn(transfer) {
  return [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
}
