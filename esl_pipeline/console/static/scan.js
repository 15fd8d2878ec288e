// The barcode before a phone's camera becomes the search. Where the browser cannot, the button stays hidden.
"use strict";
(() => {
  const by = id => document.getElementById(id);
  const [scan, camera, view, says, end] = ["scan", "camera", "view", "scan-says", "scan-end"].map(by);
  if (!scan || !("BarcodeDetector" in window) || !navigator.mediaDevices) return;
  const FORMATS = ["ean_13", "ean_8", "upc_a", "upc_e", "code_128", "code_39", "itf", "qr_code"];
  let stream = null;

  const stop = () => {
    if (stream) for (const track of stream.getTracks()) track.stop();
    stream = null;
    view.srcObject = null;
  };

  const found = code => {
    camera.close();
    by("q").value = code;
    by("search").requestSubmit();
  };

  const look = async detector => {
    while (stream) {
      try {
        const [first] = await detector.detect(view);
        if (first && first.rawValue) return found(first.rawValue);
      } catch { /* no picture yet */ }
      await new Promise(done => setTimeout(done, 150));
    }
  };

  scan.addEventListener("click", async () => {
    says.textContent = "Hold the barcode before the camera.";
    camera.showModal();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      view.srcObject = stream;
      await view.play();
      const known = await BarcodeDetector.getSupportedFormats();
      const formats = FORMATS.filter(format => known.includes(format));
      look(new BarcodeDetector(formats.length ? { formats } : undefined));
    } catch {
      says.textContent = "The camera cannot be used. Allow it for this page, or type the code.";
    }
  });
  end.addEventListener("click", () => camera.close());
  camera.addEventListener("close", stop);
  scan.hidden = false;
})();
