{{- define "perdure.name" -}}
{{- if contains "perdure" .Release.Name }}{{ .Release.Name | trunc 48 | trimSuffix "-" }}{{ else }}{{ printf "%s-perdure" .Release.Name | trunc 48 | trimSuffix "-" }}{{ end -}}
{{- end -}}
{{- define "perdure.cluster.name" -}}
{{- $name := include "perdure.name" . }}
{{- if eq $name .Release.Namespace }}{{ $name }}{{ else }}{{ $name }}-{{ .Release.Namespace }}{{ end -}}
{{- end -}}
{{- define "perdure.selector" -}}
app.kubernetes.io/name: perdure
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}
{{- define "perdure.labels" -}}
app.kubernetes.io/name: perdure
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}
{{- define "perdure.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- define "perdure.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "perdure.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end -}}
{{- end -}}
{{- define "perdure.attempt.account" -}}
{{- if .Values.attempts.serviceAccount.name }}{{ .Values.attempts.serviceAccount.name }}{{ else if .Values.attempts.serviceAccount.create }}{{ include "perdure.name" . }}-attempt{{ end -}}
{{- end -}}
{{- /* What `perdure operator --defaults` gets. */ -}}
{{- define "perdure.defaults" -}}
{{- $pod := dict "imagePullPolicy" (.Values.attempts.pod.imagePullPolicy | default .Values.image.pullPolicy) -}}
{{- with concat .Values.imagePullSecrets .Values.attempts.pod.imagePullSecrets | uniq }}{{ $_ := set $pod "imagePullSecrets" . }}{{ end -}}
{{- range $name, $value := omit .Values.attempts.pod "imagePullPolicy" "imagePullSecrets" }}{{ if $value }}{{ $_ := set $pod $name $value }}{{ end }}{{ end -}}
{{- $workspace := dict -}}
{{- range $name, $value := omit .Values.attempts.workspace "checkpointsSecretRef" }}{{ if $value }}{{ $_ := set $workspace $name $value }}{{ end }}{{ end -}}
{{- with .Values.attempts.workspace.checkpointsSecretRef }}{{ if .name }}{{ $_ := set $workspace "checkpointsSecretRef" . }}{{ end }}{{ end -}}
{{- $defaults := dict "pod" $pod "workspace" $workspace -}}
{{- if not (kindIs "invalid" .Values.attempts.ttlSecondsAfterFinished) }}{{ $_ := set $defaults "ttlSecondsAfterFinished" (int64 .Values.attempts.ttlSecondsAfterFinished) }}{{ end -}}
{{ toJson $defaults }}
{{- end -}}
{{- define "perdure.attempts.policy" -}}
{{- $policy := .Values.networkPolicy -}}
podSelector:
  matchLabels:
    app.kubernetes.io/managed-by: perdure
  matchExpressions:
    - {key: perdure.dev/taskrun-uid, operator: Exists}
policyTypes: [Ingress, Egress]
egress:
  - ports:
      {{- range $policy.dns.ports }}
      - {port: {{ . }}, protocol: UDP}
      - {port: {{ . }}, protocol: TCP}
      {{- end }}
  - ports:
      {{- range $policy.attempts.ports }}
      - {port: {{ . }}, protocol: TCP}
      {{- end }}
    to:
      {{- range $cidr := $policy.attempts.cidrs }}
      - ipBlock:
          cidr: {{ $cidr | quote }}
          {{- $family := contains ":" $cidr }}
          {{- $except := list }}
          {{- range $policy.attempts.except }}
          {{- if eq (contains ":" .) $family }}{{ $except = append $except . }}{{ end }}
          {{- end }}
          {{- with $except }}
          except: {{ toJson . }}
          {{- end }}
      {{- end }}
  {{- with $policy.attempts.egress }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
