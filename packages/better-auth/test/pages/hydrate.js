import { createElement } from "react";
import { hydrateRoot } from "react-dom/client";
import { Page } from "./fixed.js";

hydrateRoot(document.getElementById("root"), createElement(Page));
