// Package store keeps the configuration's objects: in etcd, embedded or external, with the
// last known good ones on disk.
//
// An object lives under /meridian/v1/<kind>/<name> as JSON (kinds: sites, zones, probes,
// pools, services, states). An error of the store is never read as "no objects".
package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meridian-gslb/meridian/gslb/config"
)

// View is one consistent reading of the store.
type View struct {
	Revision int64           // etcd's revision that the objects were read at; 0: the file or disk only
	Objects  *config.Objects // valid: those of the file, and those of etcd before them
	Stored   *config.Objects // those of etcd alone as they stand there, also where Objects has a last good version; those that cannot be read are left out; nil without etcd
	Faults   []string        // objects that did not validate and were left out or kept at their last good version, each with its reason
}

// Change is one guarded transaction: every object to write or delete, and what must hold.
type Change struct {
	Put    *config.Objects
	Delete []Key
	Author string
	At     int64 // refuse with ErrConflict when a touched object is newer than this revision; 0: do not guard
	Force  bool  // write even what would leave a service without any endpoint, or remove most of a kind
}

// Key names an object.
type Key struct {
	Kind string `json:"kind"` // sites, zones, probes, pools, services, states
	Name string `json:"name"`
}

// Store is a client of the objects. It is safe for concurrent use.
type Store interface {
	// Run follows the store until ctx ends and hands each new View to update, one at a
	// time, only views that are valid as a whole; the first may come from disk.
	Run(ctx context.Context, update func(View)) error
	// Apply checks the result as a whole, writes it in one transaction and returns the new
	// revision. It never writes a part.
	Apply(ctx context.Context, c Change) (int64, error)
	// Status says how the store is: for people and for metrics.
	Status() Status
}

// The modes of a store.
const (
	ModeFile     = "file"     // the file is all there is
	ModeEmbedded = "embedded" // etcd in this process
	ModeExternal = "external" // etcd by its endpoints
)

// Status says how a store is.
type Status struct {
	Mode        string    `json:"mode"`                 // ModeFile, ModeEmbedded or ModeExternal
	Connected   bool      `json:"connected"`            // etcd is followed; false with ModeFile
	Revision    int64     `json:"revision"`             // of the current view
	LastChange  time.Time `json:"lastChange,omitzero"`  // when the current view was handed on
	LastContact time.Time `json:"lastContact,omitzero"` // when etcd was last heard
	Held        string    `json:"held,omitempty"`       // why what etcd holds is not applied until Confirm, or until etcd has again what it had; "" when it is
	FromDisk    bool      `json:"fromDisk,omitempty"`   // the current view is that of the disk: etcd was not heard since the start
	Faults      []string  `json:"faults,omitempty"`     // what was not applied because it is not valid
	Error       string    `json:"error,omitempty"`      // the last error of etcd, until it is heard again
	DiskError   string    `json:"diskError,omitempty"`  // the last error of the snapshot on disk, until one is written
	DiskSavedAt time.Time `json:"diskSavedAt,omitzero"` // when the last snapshot was written by this process
}

// What Apply refuses, for callers that branch on it. Errors wrap them with the particulars.
var (
	ErrReadOnly    = errors.New("the store is the configuration file alone: change the file")
	ErrUnavailable = errors.New("etcd cannot be reached")
	ErrHeld        = errors.New("the store is held")
	ErrNotFound    = errors.New("no such object")
	ErrConflict    = errors.New("changed by someone else")
	ErrGuard       = errors.New("refused without force")
)

// ConflictError says which object of a change is newer than the change. It is ErrConflict.
type ConflictError struct {
	Key      Key
	Revision int64  // that the object was changed at
	Author   string // who changed it; "" when that is not known
	At       int64  // the revision that the change was made for
}

func (e *ConflictError) Error() string {
	who := ""
	if e.Author != "" {
		who = " by " + e.Author
	}
	return fmt.Sprintf("%s was changed%s at revision %d; this change was made for revision %d", e.Key, who, e.Revision, e.At)
}

// Is makes a ConflictError an ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// String returns kind/name.
func (k Key) String() string { return k.Kind + "/" + k.Name }
