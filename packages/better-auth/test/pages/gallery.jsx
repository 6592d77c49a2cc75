// Every state of every component, with data of its own.

import { createRoot, hydrateRoot } from "react-dom/client";
import { Gallery } from "./gallery-content.jsx";

const root = document.getElementById("root");
if (root.firstChild) hydrateRoot(root, <Gallery />);
else createRoot(root).render(<Gallery />);
