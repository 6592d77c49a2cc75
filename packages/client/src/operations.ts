// The operations of the HTTP API as types, derived from the generated `paths`.

import type { paths } from "./openapi.js";

type Method = "get" | "put" | "post" | "patch" | "delete";
type Path = keyof paths & `/v1/${string}`;

/** Every operation below `/v1`, such as `"GET /v1/plans/{id}"`. */
export type Operation = {
  [P in Path]: { [M in Method]: paths[P][M] extends { responses: unknown } ? `${Uppercase<M>} ${P}` : never }[Method];
}[Path];

type Spec<O extends Operation> = O extends `${infer M} ${infer P extends Path}` ? paths[P][Lowercase<M> & Method] : never;
type Part<O extends Operation, In extends "path" | "query" | "header"> =
  Spec<O> extends { parameters: { [K in In]?: infer T } } ? NonNullable<T> : never;
type HeaderName<O extends Operation> = [Part<O, "header">] extends [never] ? never : keyof Part<O, "header">;
type Json<T> = T extends { content: { "application/json": infer B } } ? B : never;

/** The query parameters of an operation. */
export type RequestQuery<O extends Operation> = Part<O, "query">;

/** The body of an operation. */
export type RequestBody<O extends Operation> = Spec<O> extends { requestBody?: infer B } ? Json<NonNullable<B>> : never;

/** The body of a success; undefined if it has none. */
export type ResponseBody<O extends Operation> =
  Spec<O> extends { responses: infer R } ? OrUndefined<{ [S in keyof R & (200 | 201 | 202)]: Json<R[S]> }[keyof R & (200 | 201 | 202)]> : never;
type OrUndefined<T> = [T] extends [never] ? undefined : T;

/** The operations that take an `Idempotency-Key` and change something. */
export type KeyedOperation = {
  [O in Operation]: "Idempotency-Key" extends HeaderName<O> ? Exclude<O, "POST /v1/check"> : never;
}[Operation];

/** For each call. */
export interface CallOptions {
  /** Ends the call with the code `aborted`. */
  signal?: AbortSignal | undefined;
}

/** For calls that count, or change a count. */
export interface KeyedOptions extends CallOptions {
  /** 1 to 255 printable ASCII characters; a call that repeats it within 24 hours gets the first response and counts nothing. */
  idempotencyKey?: string | undefined;
}

/** For changes that depend on the state: 412 `precondition_failed` unless it is as stated. */
export interface ConditionalOptions extends CallOptions {
  /** The `version` that must be the current one, or `"*"`: it must exist. */
  ifMatch?: number | "*" | undefined;
  /** `"*"`: it must not exist, so that a PUT creates and never replaces. */
  ifNoneMatch?: "*" | undefined;
}

type With<K extends string, T, Optional> =
  [T] extends [never] ? unknown : Optional extends true ? { [P in K]?: T | undefined } : { [P in K]: T };
type IsOptional<T> = object extends T ? true : false;

/** What an operation needs and takes. */
export type RequestParameters<O extends Operation> = With<"path", Part<O, "path">, false> &
  With<"query", Part<O, "query">, IsOptional<Part<O, "query">>> &
  With<"body", RequestBody<O>, Spec<O> extends { requestBody: object } ? false : true> &
  (O extends KeyedOperation ? KeyedOptions : "If-Match" extends HeaderName<O> ? ConditionalOptions : CallOptions);

/** The operations that return `{ data, nextCursor }`. */
export type ListOperation = { [O in Operation]: ResponseBody<O> extends { data: unknown[]; nextCursor?: string | null } ? O : never }[Operation];

/** A row of a list. */
export type Row<O extends ListOperation> = ResponseBody<O> extends { data: (infer T)[] } ? T : never;
