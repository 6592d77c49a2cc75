"use client";

import { type ReactNode, useId } from "react";
import type { UsageError } from "../resource.js";
import { type Format, formatOf } from "./format.js";
import { DEFAULT_LOCALIZATION, type Localization } from "./localization.js";
import { type UsageTrackingSettings, useSettings } from "./provider.js";

/** The parts of the components, for class names of your own. */
export type Part =
  | "card" | "header" | "title" | "badge" | "content" | "value" | "bar" | "description" | "footer" | "button"
  | "skeleton" | "failure" | "controls" | "choice" | "facts" | "chart" | "table" | "list" | "item" | "dashboard";

/** What all components take. */
export interface CardProps extends UsageTrackingSettings {
  /** For the outermost element. */
  className?: string | undefined;
  classNames?: Partial<Record<Part, string>> | undefined;
  /** Of the title; 2 unless given. */
  headingLevel?: 2 | 3 | 4 | 5 | 6 | undefined;
}

interface Writing {
  texts: Localization;
  format: Format;
  /** The class names of a part: ours, and those that are given. */
  part(name: Part, ...more: (string | false | undefined)[]): string;
}

export function useWriting(props: CardProps): Writing {
  const { localization, locale = "en" } = useSettings(props);
  return {
    texts: { ...DEFAULT_LOCALIZATION, ...localization },
    format: formatOf(locale),
    part: (name, ...more) => cx(`tallyman-${name}`, ...more, props.classNames?.[name]),
  };
}

export const cx = (...names: (string | false | undefined)[]): string => names.filter(Boolean).join(" ");

interface CardFrame extends CardProps {
  title: string;
  /** At the end of the header. */
  badge?: ReactNode;
  /** Below the header. */
  controls?: ReactNode;
  /** Called by a button at the end. */
  onUpgrade?: (() => void) | false | undefined;
  /** Why there are no children, or only old ones. */
  error: UsageError | null;
  refetch: () => unknown;
  /** Nothing while they are loading. */
  children?: ReactNode;
}

export function Card(props: CardFrame) {
  const { title, error, onUpgrade, children, className, headingLevel = 2 } = props;
  const id = useId();
  const { texts, part } = useWriting(props);
  const Heading = `h${headingLevel}` as const;
  const button = (text: string, onClick: () => unknown, className?: string) => (
    <button type="button" className={part("button", className)} onClick={() => void onClick()}>
      {text}
    </button>
  );
  return (
    <article className={part("card", className)} aria-labelledby={id} aria-busy={!children && !error}>
      <header className={part("header")}>
        <Heading id={id} className={part("title")}>
          {title}
        </Heading>
        {props.badge}
      </header>
      {props.controls}
      {children}
      {error && (
        <div className={part("failure")} role="alert">
          <strong>{texts.LOAD_FAILED}</strong>
          <p>{explain(error, texts)}</p>
          {button(texts.TRY_AGAIN, props.refetch, "tallyman-quiet")}
        </div>
      )}
      {!children && !error && (
        <div className={part("skeleton", props.controls !== undefined && "tallyman-tall")} role="status" aria-label={texts.LOADING}>
          <i /> <i /> <i />
        </div>
      )}
      {children && onUpgrade && <footer className={part("footer")}>{button(texts.UPGRADE_PLAN, onUpgrade)}</footer>}
    </article>
  );
}

function explain({ status, error }: UsageError, texts: Localization): string {
  if (status === 401) return texts.ERROR_SIGNED_OUT;
  if (error?.code === "NO_ORGANIZATION") return texts.ERROR_NO_ORGANIZATION;
  if (error?.code === "NOT_A_MEMBER") return texts.ERROR_NOT_A_MEMBER;
  return texts.ERROR_UNAVAILABLE;
}

const ICONS = {
  ok: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 1 0 8 1.8zM5.4 8.2l1.8 1.8 3.5-3.8",
  warning: "M8 2 14.6 13.6H1.4zM8 6.2v3.4M8 11.6v.1",
  full: "M8 1 15 8 8 15 1 8zM8 4.8v3.6M8 10.9v.1",
  over: "M5.2 1.4h5.6l3.8 3.8v5.6l-3.8 3.8H5.2l-3.8-3.8V5.2zM4.8 8h6.4",
  none: "M3 8h10",
  unlimited: "M8 8c-1.6 2.3-2.6 3-3.8 3a3 3 0 0 1 0-6C5.4 5 6.4 5.7 8 8c1.6 2.3 2.6 3 3.8 3a3 3 0 0 0 0-6C10.6 5 9.6 5.7 8 8z",
  lock: "M3.5 7.2h9v6.3h-9zM5.4 7V5a2.6 2.6 0 0 1 5.2 0v2",
};

export type Icon = keyof typeof ICONS;

/** A shape and a text that say the same; colour alone says nothing. */
export function Mark({ icon, className, children }: { icon: Icon; className?: string; children?: ReactNode }) {
  return (
    <span className={cx("tallyman-mark", `tallyman-${icon}`, className)}>
      <svg viewBox="0 0 16 16" aria-hidden="true">
        <path d={ICONS[icon]} />
      </svg>
      {children}
    </span>
  );
}
