// CLIP's preprocessing for JavaScript: the pixels of the original, which resizes with Pillow 13.
// Browsers and sharp resize in other ways, and embeddings differ with the pixels.
//
//   import { preprocess } from "./preprocess.mjs";
//   const { data, dims } = preprocess(image, await (await fetch("preprocessor_config.json")).json());
//   const pixel_values = new Tensor("float32", data, dims);
//
// `image` has `data` (rows of 8-bit RGB or RGBA), `width`, `height` and `channels` (4 unless given, as in ImageData);
// alpha is dropped.

const UNIT = 2 ** 22;

export function preprocess(image, settings) {
  const { width, height } = image;
  const resize = settings.size.shortest_edge, crop = settings.crop_size.height;
  const short = Math.min(width, height);
  const newWidth = Math.floor((resize * width) / short), newHeight = Math.floor((resize * height) / short);
  const across = weights(width, newWidth, crop), down = weights(height, newHeight, crop);
  const verticalFirst = height > newHeight && height - newHeight > 2 * (width - newWidth);
  const planes = [0, 1, 2].map((channel) => {
    const plane = { values: channelOf(image, channel), width, height };
    return verticalFirst ? horizontal(vertical(plane, down), across) : vertical(horizontal(plane, across), down);
  });
  const data = new Float32Array(3 * crop * crop);
  planes.forEach(({ values }, channel) => {
    const mean = Math.fround(settings.image_mean[channel]), std = Math.fround(settings.image_std[channel]);
    const table = Float32Array.from({ length: 256 }, (_, level) => {
      const rescaled = Math.fround(level / Math.fround(1 / settings.rescale_factor));
      return Math.fround(Math.fround(rescaled - mean) / std);
    });
    values.forEach((level, index) => (data[channel * crop * crop + index] = table[level]));
  });
  return { data, dims: [1, 3, crop, crop] };
}

function channelOf({ data, width, height, channels = 4 }, channel) {
  const values = new Uint8Array(width * height);
  for (let index = 0; index < values.length; index++) values[index] = data[index * channels + channel];
  return values;
}

function bicubic(t) {
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * -0.5 : 0;
}

// for each position of the crop: the first pixel that it reads, and integer weights
function weights(length, resized, crop) {
  const scale = length / resized, filterScale = Math.max(scale, 1), support = 2 * filterScale;
  const start = halfToEven((resized - crop) / 2);
  return Array.from({ length: crop }, (_, index) => {
    const center = (start + index + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const last = Math.min(Math.trunc(center + support + 0.5), length);
    const values = [];
    for (let x = first; x < last; x++) values.push(bicubic(Math.abs((x - center + 0.5) * (1 / filterScale))));
    const sum = values.reduce((total, value) => total + value, 0);
    return { first, values: values.map((value) => Math.trunc((value / sum) * UNIT + (value < 0 ? -0.5 : 0.5))) };
  });
}

function halfToEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

function level(total) {
  return Math.min(Math.max(Math.floor((total + UNIT / 2) / UNIT), 0), 255);
}

function horizontal({ values, width, height }, across) {
  const out = new Uint8Array(across.length * height);
  for (let y = 0; y < height; y++) {
    across.forEach(({ first, values: weight }, x) => {
      let total = 0;
      for (let k = 0; k < weight.length; k++) total += values[y * width + first + k] * weight[k];
      out[y * across.length + x] = level(total);
    });
  }
  return { values: out, width: across.length, height };
}

function vertical({ values, width }, down) {
  const out = new Uint8Array(width * down.length);
  down.forEach(({ first, values: weight }, y) => {
    for (let x = 0; x < width; x++) {
      let total = 0;
      for (let k = 0; k < weight.length; k++) total += values[(first + k) * width + x] * weight[k];
      out[y * width + x] = level(total);
    }
  });
  return { values: out, width, height: down.length };
}
