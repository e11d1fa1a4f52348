const element = (id) => document.getElementById(id);
const folder = new URLSearchParams(location.search).get("model") ?? "model";
const END_OF_TEXT = 49407n;
// in JPEG files: a name and the header of a TIFF, which has at least 8 bytes
const EXIF = /Exif\0\0(II\*\0|MM\0\*)(?=[^]{4})/g;
const ORIENTATION = 0x0112;
const say = (text) => (element("status").textContent = text);

async function load() {
  const transformers = await import("@huggingface/transformers");
  const { AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, env } = transformers;
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = new URL(".", location.href).pathname;
  env.backends.onnx.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", location.href).href;
  const progress_callback = ({ status, file, progress }) => {
    if (status === "progress") say(`loading ${file}: ${Math.round(progress)} %`);
  };
  const options = { dtype: "fp32", device: "wasm", progress_callback };
  return {
    Tensor: transformers.Tensor,
    preprocess: (await import(`./${folder}/preprocess.mjs`)).preprocess,
    settings: await json("preprocessor_config.json"),
    scale: Math.exp((await json("hf_clip_export.json")).logit_scale),
    tokenizer: await AutoTokenizer.from_pretrained(folder, { progress_callback }),
    text: await CLIPTextModelWithProjection.from_pretrained(folder, options),
    vision: await CLIPVisionModelWithProjection.from_pretrained(folder, options),
  };
}

async function json(name) {
  const response = await fetch(`./${folder}/${name}`);
  if (!response.ok) throw new Error(`${folder}/${name} is missing: export the model as README.md says`);
  return response.json();
}

async function pixels(file) {
  if (!file) throw new Error("no image is chosen: choose one");
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(file, options).catch(() => {
    throw new Error(`${file.name} is not an image that this browser reads: choose a PNG or JPEG file`);
  });
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

// Browsers turn every image as its EXIF orientation says, and cannot leave that off. So the orientation of a JPEG is set
// to upright in a copy.
async function asStored(file) {
  const bytes = await file.arrayBuffer(), view = new DataView(bytes);
  const text = new TextDecoder("latin1").decode(bytes);
  let isRotated = false;
  for (const { 0: found, 1: header, index } of text.matchAll(EXIF)) {
    const start = index + found.length - header.length, little = header[0] === "I";
    const directory = start + view.getUint32(start + 4, little);
    if (directory + 2 > view.byteLength) continue;
    const end = directory + 2 + 12 * view.getUint16(directory, little);
    for (let entry = directory + 2; entry < end && entry + 12 <= view.byteLength; entry += 12) {
      if (view.getUint16(entry, little) !== ORIENTATION) continue;
      isRotated ||= view.getUint16(entry + 8, little) > 1;
      view.setUint16(entry + 8, 1, little);
    }
  }
  return { file: new File([bytes], file.name, { type: file.type }), isRotated };
}

async function classify(clip, file, labels) {
  if (!labels.length) throw new Error("no label is given: write one on each line");
  const { data, dims } = clip.preprocess(await pixels(file), clip.settings);
  const { image_embeds } = await clip.vision({ pixel_values: new clip.Tensor("float32", data, dims) });
  const { text_embeds } = await clip.text(withEnds(clip.tokenizer(labels, { padding: true, truncation: true })));
  const [image] = image_embeds.normalize().tolist();
  const logits = text_embeds.normalize().tolist().map((text) => clip.scale * dot(image, text));
  const exponentials = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}

// transformers.js cuts long labels behind their last token; the model reads the embedding at <|endoftext|>
function withEnds(tokens) {
  const { data, dims: [rows, length] } = tokens.input_ids;
  for (let row = 0; row < rows; row++) {
    const ids = data.subarray(row * length, (row + 1) * length);
    if (!ids.includes(END_OF_TEXT)) ids[length - 1] = END_OF_TEXT;
  }
  return tokens;
}

const dot = (left, right) => left.reduce((total, value, index) => total + value * right[index], 0);

function show(labels, scores) {
  const order = labels.map((_, index) => index).sort((left, right) => scores[right] - scores[left]);
  element("scores").replaceChildren(...order.map((index) => {
    const row = document.createElement("li"), name = document.createElement("span");
    const meter = document.createElement("meter"), percent = document.createElement("span");
    name.textContent = labels[index];
    meter.value = scores[index];
    percent.textContent = `${(100 * scores[index]).toFixed(1)} %`;
    row.append(name, meter, percent);
    return row;
  }));
}

element("image").onchange = ({ target }) => {
  element("preview").hidden = !target.files.length;
  if (target.files.length) element("preview").src = URL.createObjectURL(target.files[0]);
};

try {
  const clip = await load();
  element("classify").onclick = async () => {
    const labels = element("labels").value.split("\n").map((label) => label.trim()).filter(Boolean);
    element("scores").replaceChildren();
    say("classifying");
    try {
      const [chosen] = element("image").files;
      const turned = element("exif").checked || !chosen;
      const { file, isRotated } = turned ? { file: chosen } : await asStored(chosen);
      show(labels, await classify(clip, file, labels));
      say(isRotated ? "done: the image carries a rotation, which is ignored" : "done");
    } catch (error) {
      say(error.message);
    }
  };
  element("classify").disabled = false;
  say("ready");
} catch (error) {
  say(error.message);
}
