package api

import (
	"context"
	"net/http"

	"github.com/meridian-gslb/meridian/gslb"
	"github.com/meridian-gslb/meridian/gslb/config"
)

// Plan is what a change would do to the decisions that a node made lately.
type Plan struct {
	gslb.Plan
	Revision uint64          `json:"revision"`          // of the snapshot that it starts from
	Diff     []config.Change `json:"diff"`              // of the objects
	Gone     []string        `json:"gone,omitempty"`    // services that would not be any more
	Refused  string          `json:"refused,omitempty"` // why the objects would be refused without force
}

// Plan returns what objects in YAML or JSON (none when empty) would change, under the terms
// of gslb.Snapshot.WhatIf. Nothing is written.
func (c *Client) Plan(ctx context.Context, objects []byte, terms []string, prune bool) (*Plan, error) {
	q := query()
	if len(terms) > 0 {
		q["if"] = terms
	}
	if prune {
		q.Set("prune", "1")
	}
	return call[Plan](ctx, c, http.MethodPost, "/api/v1/plan", q, "application/yaml", objects)
}
